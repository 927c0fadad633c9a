"""The former name of the job `common.shards`."""

from common.config import main as run_job
from common.shards import main

if __name__ == "__main__":
    run_job(main)
