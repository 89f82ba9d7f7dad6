"""The Gradio page. It listens on this machine alone, and nothing of it is sent anywhere."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.app.panels import Panels
from common.errors import UserError, first_line
from common.images import open_image
from common.report.runs import read_proof

HOST = "127.0.0.1"


def proof_of(run: Path) -> str:
    """The verdicts of proof.json as a list in Markdown; says how to get one where there is none."""
    found = read_proof(run)
    if found is None:
        return "No proof yet: the verb `prove` attacks what the run says it forgot."
    return "\n".join(["**Proof**", "", *(f"- **{v['headline']}** {v['text']}" for v in found["verdicts"])])


def build(panels: Panels, run: Path) -> Any:
    """The page, not started. Raises UserError: Gradio is missing."""
    if find_spec("gradio") is None:
        raise UserError("the page needs gradio; run: pip install 'knowledge-swapping[app]'.")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    import gradio  # takes seconds to import

    def show(file: str | None, scale: float) -> list[Any]:
        if file is None:
            return [None, ""] * len(panels.titles)
        try:
            picture = open_image(Path(file))
        except UserError as error:
            raise gradio.Error(str(error)) from None
        return [part for panel in panels.answers(picture, scale) for part in (panel.picture, panel.text)]

    page = gradio.Blocks(title="Knowledge swap", analytics_enabled=False)
    with page:
        gradio.Markdown(f"## {run.name}\nDrop a picture: the answers of the base and of the model after each phase.")
        with gradio.Row():
            picture = gradio.Image(type="filepath", sources=["upload", "clipboard"], label="picture", elem_id="picture")
            with gradio.Column():
                scale = gradio.Slider(0, 2, 1, step=0.05, label="strength of the adapter", visible=panels.scalable,
                                      elem_id="scale")  # fmt: skip
                again = gradio.Button("Answer", variant="primary", elem_id="answer")
                gradio.Markdown(proof_of(run), elem_id="proof")
        outputs: list[Any] = []
        with gradio.Row():
            for number, title in enumerate(panels.titles):
                with gradio.Column():
                    outputs.append(gradio.Image(label=title, interactive=False, format="png", buttons=["fullscreen"]))
                    outputs.append(gradio.Textbox(label=title, lines=3, elem_id=f"text-{number}", interactive=False))
        for event in (picture.change, scale.release, again.click):
            event(show, [picture, scale], outputs, api_visibility="private")
    return page


def serve(page: Any, port: int | None) -> None:
    """Runs the page on the loopback, says its address and waits. port: None takes the first free one from 7860 on."""
    import gradio

    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no fonts from elsewhere
    try:
        _, address, _ = page.launch(
            server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True, theme=theme,
            footer_links=[], ssr_mode=False, enable_monitoring=False, show_error=True,
        )  # fmt: skip
    except OSError as error:
        raise UserError(
            f"port {port or 'from 7860 on'} cannot be used ({first_line(error)}); choose another --port."
        ) from None
    print(f"page on {address} (Ctrl-C ends it)", flush=True)
    page.block_thread()
