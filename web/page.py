"""The page: its tabs, its limits, and how it is served."""

import os
import socket
from typing import Any

from utils import UserError
from web import depth_tab, graph_tab, image_tab, video_tab
from web.parts import STYLE
from web.state import Shared, gradio

TABS = {"Image": image_tab, "Video": video_tab, "3D": depth_tab, "Graph": graph_tab}
TITLE = "Cross-task consistency"
FONTS = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # of the visitor's machine


def build(shared: Shared) -> Any:
    """Build the page as a `gr.Blocks`; `serve` starts it."""
    gr = gradio()
    seconds = max(1, round(60 * shared.limits.keep_minutes))
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(min(60, seconds), seconds)
    ) as page:
        gr.Markdown(
            f"# {TITLE}\nNormals, depth and shading of an image, and how far they can be trusted."
        )
        for name, tab in TABS.items():
            with gr.Tab(name, id=name):
                tab.build(shared)
    return page.queue(max_size=shared.limits.max_waiting, default_concurrency_limit=1)


def serve(page: Any, shared: Shared, host: str, port: int) -> str:
    """Start the server of the page in the background, and return its address.

    Port 0 takes any that is free. `page.close()` ends it. Raises UserError if the port is in use
    or the host is not an address of this machine.
    """
    port = free_port(host, port)
    sans, mono = FONTS
    shared.start_sweeping()
    page.launch(
        server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
        max_file_size=shared.limits.max_upload_mb * 2**20, ssr_mode=False, pwa=False,
        enable_monitoring=False, mcp_server=False, footer_links=[], run_history=False,
        _frontend=False,  # Gradio does not request the page itself, which fails if it takes 3 s
        css=STYLE, theme=gradio().themes.Default(font=sans, font_mono=mono),
    )  # fmt: skip
    return f"http://{host}:{port}"


def free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0. Raises UserError if it cannot be used."""
    if not 0 <= port < 2**16:
        raise UserError(f"`port` is 0 to 65535, not {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except socket.gaierror:
        raise UserError(f"`host` {host} is not an address of this machine") from None
    except PermissionError:
        raise UserError(f"port {port} needs an administrator: give a `port` above 1023") from None
    except OSError as error:
        if error.errno == 98:
            raise UserError(f"port {port} of {host} is in use: give another `port`") from None
        raise UserError(f"`host` {host} is not an address of this machine") from None


def settings(folder: str) -> dict[str, str]:
    """Return environment variables for Gradio, to be set before its import.

    With them, it neither reports usage nor looks for updates, contacts its own server without a
    proxy, and keeps its temporary files in `folder`.
    """
    direct = [os.environ.get("no_proxy", ""), "localhost", "127.0.0.1"]
    return {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": folder,
        "HF_HUB_OFFLINE": "1",
        "no_proxy": ",".join(filter(None, direct)),
    }
