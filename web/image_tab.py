"""The Image tab."""

from web.state import Shared


def build(shared: Shared) -> None:
    """Add the components and events of the tab; called within its `gr.Tab`."""
