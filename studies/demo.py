"""A page to try a tokenizer and a generator in a browser: `bash scripts/demo.sh`.

After a quickstart it opens that run's models; `--vq-ckpt` and `--gpt-ckpt` name others. The page is served on this
machine alone, and the browser is told to load nothing from elsewhere.
"""

from __future__ import annotations

from common import config
from studies.demo_models import Demo, DemoConfig


def main() -> None:
    options = config.parse(DemoConfig, about=__doc__)
    from studies.demo_page import serve  # Gradio is only in requirements/demo.txt

    serve(Demo.load(options), options.port)


if __name__ == "__main__":
    config.main(main)
