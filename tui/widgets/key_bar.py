"""The row at the bottom: the keys that work now.

Textual's Footer is a widget a key, made anew with three layouts of the screen whenever the focus moves: 80 of the 110 ms from a
Tab to the repaint of the Run screen. This is one row of text.
"""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.events import Click
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget


class KeyBar(Widget):
    """`s Stop  x Checkpoint  ...`; a click on one presses its key."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES = {"key-bar--key", "key-bar--word"}
    DEFAULT_CSS = """
    KeyBar { dock: bottom; height: 1; background: $footer-background; color: $footer-foreground; }
    KeyBar > .key-bar--key { color: $footer-key-foreground; background: $footer-key-background; text-style: bold; }
    KeyBar > .key-bar--word { color: $footer-description-foreground; background: $footer-description-background; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._keys: tuple[tuple[str, str, str, bool], ...] = ()
        """(key, how it is written, its word, whether it can be pressed)."""

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._bindings_changed)
        # Textual 8.2.8 publishes the signal after a refresh, and not at all for a widget that has only just been shown.
        self.watch(self.screen, "focused", lambda: self._bindings_changed(self.screen), init=False)
        self._bindings_changed(self.screen)

    def _bindings_changed(self, screen: Screen[object]) -> None:
        # Without screens the application is closing, and nothing knows its keys any more.
        if not self.is_attached or screen is not self.screen or not self.app.screen_stack:
            return
        keys: dict[str, tuple[str, str, str, bool]] = {}
        for active in screen.active_bindings.values():
            binding = active.binding
            if binding.show and binding.action not in keys:
                shown = self.app.get_key_display(binding)
                keys[binding.action] = (binding.key, shown, binding.description, active.enabled)
        if tuple(keys.values()) != self._keys:
            self._keys = tuple(keys.values())
            self.refresh()

    def render_line(self, y: int) -> Strip:
        base = self.rich_style
        key_style, word_style = (self.get_component_rich_style(f"key-bar--{part}") for part in ("key", "word"))
        segments = []
        for _, shown, word, enabled in self._fitting():
            dim = Style(dim=not enabled)
            segments += [Segment(shown, key_style + dim), Segment(f" {word}", word_style + dim), Segment(" ", base)]
        return Strip(segments).crop_extend(0, self.size.width, base)

    def _fitting(self) -> list[tuple[str, str, str, bool]]:
        """The keys that there is room for; the last, which is the help, has the others."""
        room = self.size.width + 1 - sum(_cells(shown, word) for _, shown, word, _ in self._keys[-1:])
        fitting = []
        for key in self._keys[:-1]:
            room -= _cells(key[1], key[2])
            if room < 0:
                break
            fitting.append(key)
        return [*fitting, *self._keys[-1:]]

    def on_click(self, event: Click) -> None:
        column = 0
        for key, shown, word, enabled in self._fitting():
            column += _cells(shown, word)
            if event.x < column:
                if enabled:
                    self.app.simulate_key(key)
                return


def _cells(shown: str, word: str) -> int:
    return cell_len(shown) + 1 + cell_len(word) + 1
