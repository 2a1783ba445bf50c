"""The Video tab: predictions over a video."""

from web.state import Shared, gradio


def build(shared: Shared) -> None:
    """Add the components and events of the tab; called within its `gr.Tab`."""
    gr = gradio()
    gr.Markdown("Predictions over a video are not on the page yet.")
