"""The 3D tab: predicted depth as a surface to turn."""

from web.state import Shared, gradio


def build(shared: Shared) -> None:
    """Add the components and events of the tab; called within its `gr.Tab`."""
    gr = gradio()
    gr.Markdown("Depth in three dimensions is not on the page yet.")
