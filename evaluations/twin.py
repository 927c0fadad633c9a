"""The former name of the job `evaluations.c2i.evaluator_torch`."""

from common.config import main as run_job
from evaluations.c2i.evaluator_torch import main

if __name__ == "__main__":
    run_job(main)
