"""Where to save the draft as a preset file; a file that is there is replaced only when that is said twice."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, Static

from core.errors import InputError
from core.language import tr, tr_later
from core.preset_source import shipped_presets
from core.text.plain import plain
from tui.draft import Draft
from tui.screens.base import WizardDialog
from tui.status_marks import mark
from tui.widgets.key_bar import KeyBar


class SavePresetDialog(WizardDialog[Path]):
    """Dismissed with the path of the file that was written; with None where nothing was."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", tr_later("Leave"))]

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self._draft = draft
        self._asked: Path | None = None
        """The file about which was asked whether to replace it."""

    def compose(self) -> ComposeResult:
        with Vertical(id="save-box") as box:
            box.border_title = tr("Save as a preset")
            yield Static(tr("File, from {folder}; Enter saves it:", folder=plain(str(Path.cwd()))), markup=False)
            name = self._draft.name if self._draft.name not in shipped_presets() else f"my-{self._draft.name}"
            yield Input(f"{name}.yaml", compact=True)
            yield Static(id="said", markup=False)
        yield KeyBar()

    @on(Input.Changed)
    def forget_question(self) -> None:
        self._asked = None
        self.query_one("#said", Static).update("")

    @on(Input.Submitted)
    def save(self, event: Input.Submitted) -> None:
        text = event.value.strip()
        if not text:
            self._say("fail", tr("Type a file name."))
            return
        path = Path(text).expanduser()
        path = path if path.suffix in (".yaml", ".yml") else path.with_name(f"{path.name}.yaml")
        try:
            if path.exists() and path != self._asked:
                self._asked = path
                self._say("warn", tr("{path} is there already. Enter again replaces it.", path=plain(str(path))))
                return
            self._draft.save(path)
        except (InputError, OSError) as error:
            self._say("fail", plain(str(error)))
            return
        self.dismiss(path)

    def _say(self, status: str, text: str) -> None:
        self.query_one("#said", Static).update(mark(status).append(f"  {text}"))
