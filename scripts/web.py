"""The page that shows predictions for images, in the browser.

python -m scripts.web --port 8000
"""

import os
import signal
import threading

from flags import command_line
from web.page import build, free_port, serve, settings
from web.state import Shared, gradio


def main(
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    models_dir: str | None = None,
    checkpoint: list | None = None,
) -> None:
    """Show predictions for images on a page in the browser, until Ctrl-C.

    The page needs no connection to the web. Upload an image or take an example: it shows what two
    networks predict, what follows from it in other domains, and how far it can be trusted.
    Uploads and results are removed after 15 minutes, and at the end. Needs the extra `web`:
    uv sync --frozen --extra web (make demo installs it and starts the page).

    Example: python -m scripts.web --port 8000 --checkpoint results/RUN

    Args:
        host: the address at which the page is; 0.0.0.0 shows it to the whole network, and
            everybody there can then use it.
        port: its port; 0 takes any that is free.
        models_dir: the folder of the checkpoints that are shown first (default: models/, then
            models/trained, then those shipped).
        checkpoint: the networks that are shown first, comma-separated: files, runs' folders,
            omnidata or taskonomy.
    """
    port = free_port(host, port)  # so that it fails at once, not after seconds
    shared = Shared(models_dir=models_dir, checkpoint=checkpoint)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does: close all
    try:
        os.environ.update(settings(str(shared.folder)))
        gradio()
        page = build(shared)
        address = serve(page, shared, host, port)
        print(f"the page: {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("the page is closed")
    finally:
        shared.close()


if __name__ == "__main__":
    command_line(main)
