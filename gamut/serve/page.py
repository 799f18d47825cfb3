"""The page: gradio has the recorder, the player and the queue; what is heard is HTML of ours, downloads included, so
that nothing of it lies on the disk."""

from __future__ import annotations

import base64
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from gamut.audio.longest import Longest
from gamut.errors import AudioError, GamutError
from gamut.serve.pictures import picture
from gamut.tag.formats import FORMATS
from gamut.tag.recording import Recording
from gamut.tag.result import Choice, Tagged

SHOWN = 200  # spans and segments in the page; downloads have all
WAITING = 16  # requests
KEPT = 600  # seconds: the player may ask for an upload again
STYLE = """
footer { display: none !important; }
#heard { overflow-wrap: anywhere; }
#heard img { width: 100%; max-width: 720px; border-radius: 6px; background: white; }
#heard .sentence { font-size: 1.1em; }
#heard .error { color: #b91c1c; }
#heard .downloads a { display: inline-block; margin: 0 .6em .6em 0; padding: .4em .8em; border-radius: 6px;
  border: 1px solid var(--border-color-primary); }
#heard .scrolls { overflow-x: auto; }
#heard table, #heard tr, #heard td { border: 0; }
#heard td { padding: .15em .8em .15em 0; vertical-align: top; }
#heard td:first-child { white-space: nowrap; font-variant-numeric: tabular-nums; }
"""
DOWNLOADS = {"csv": "CSV", "json": "JSON", "audacity": "Audacity labels", "srt": "SRT"}


@dataclass(frozen=True)
class Limits:
    """What is taken."""

    megabytes: int  # of an upload
    seconds: float  # of a recording


class Listener:
    """From a file to HTML that says what is heard in it, with one model."""

    def __init__(self, model: Any, options: dict[str, Any], choice: Choice, limits: Limits) -> None:
        """options: of the model's `tag`."""
        self._model, self._options, self._choice, self._limits = model, options, choice, limits

    def hear(self, path: str | None, told: Callable[[float], None] = lambda share: None) -> str:
        """HTML; a sentence where the file cannot be used. told: the share of the recording that is done."""
        if path is None:
            return ""
        name = Path(path).name
        try:
            size = Path(path).stat().st_size
            if size > self._limits.megabytes * 1_000_000:
                raise AudioError(f"{name} has {size / 1e6:,.0f} MB; at most {self._limits.megabytes} are taken.")
            with Recording(path, Longest(self._limits.seconds)) as recording:
                done = 0.0

                def heard(seconds: float) -> None:
                    nonlocal done
                    done += seconds
                    told(min(done / recording.seconds, 1.0))

                (tagged,) = self._model.tag([recording], heard=heard, **self._options)
                return "".join(html(replace(tagged, path=Path(name)), self._choice, picture(recording, tagged)))
        except GamutError as error:
            return _error(str(error).replace(path, name))
        except OSError as error:
            return _error(f"{name} cannot be read: {error.strerror or error}.")
        except Exception:  # the page goes on; who serves it sees why
            traceback.print_exc()
            return _error(f"{name} could not be tagged: there is more in the terminal of whoever serves this page.")


def html(tagged: Tagged, choice: Choice, image: bytes) -> Iterator[str]:
    """What is heard in one recording."""
    best = _best(tagged, choice)
    said = f"{escape(str(tagged.path))}, {tagged.seconds:.1f} s"
    yield f'<p class="sentence"><span id="what">{said}{": " if best else ""}</span><b id="best">{escape(best)}</b></p>'
    yield f'<img alt="waveform, spectrogram and tags over time" src="{_data(image, "image/png")}">'
    if tagged.text is not None:
        yield f'<h3>Text</h3><p id="text">{escape(tagged.text.strip())}</p>'
        yield _table((one.start, one.end, one.text.strip()) for one in tagged.words)
    if tagged.labels:
        yield "<h3>Tags</h3>"
        tags = (
            (one, ", ".join(f"{name} {p:.0%}" for name, p in choice.of(tagged, one)) or "-") for one in tagged.spans
        )
        yield _table((span.start, span.end, text) for span, text in tags)
    yield '<h3>Download</h3><p class="downloads">'
    for name, shown in DOWNLOADS.items():
        form = FORMATS[name]
        content = _data(form.of(tagged, choice).encode(), "application/octet-stream")
        file = escape(str(tagged.path.with_suffix(form.ending)), quote=True)
        yield f'<a download="{file}" href="{content}" title="{escape(form.about, quote=True)}">{shown}</a>'
    yield "</p>"


def page(listener: Listener, title: str, limits: Limits) -> Any:
    """gradio's Blocks."""
    import gradio

    def hear(path: str | None, progress: gradio.Progress = gradio.Progress()) -> str:  # noqa: B008 (gradio looks for it)
        return listener.hear(path, lambda share: progress(share, desc="listening"))

    with gradio.Blocks(title="Gamut", analytics_enabled=False, delete_cache=(60, KEPT)) as blocks:
        gradio.Markdown(f"# What is heard\n{title}")
        sound = gradio.Audio(
            label=f"A recording of up to {limits.seconds:g} s and {limits.megabytes} MB",
            sources=["upload", "microphone"], type="filepath", editable=False, buttons=[], elem_id="sound",
        )  # fmt: skip
        out = gradio.HTML(elem_id="heard")
        for happening in (sound.upload, sound.stop_recording, sound.clear):
            happening(hear, sound, out, api_visibility="private", show_progress="full")
    blocks.queue(default_concurrency_limit=1, max_size=WAITING)
    return blocks


def _best(tagged: Tagged, choice: Choice) -> str:
    """The class that any span is surest of, and how sure."""
    found = [tag for span in tagged.spans for tag in choice.of(tagged, span)[:1]]
    name, p = max(found, key=lambda tag: tag[1], default=("", 0.0))
    return f"{name} {p:.0%}" if name else ""


def _table(rows: Iterator[tuple[float, float, str]]) -> str:
    every = list(rows)
    cells = "".join(f"<tr><td>{a:.1f} – {b:.1f}</td><td>{escape(text)}</td></tr>" for a, b, text in every[:SHOWN])
    more = f"<p>{len(every) - SHOWN} more are in the downloads.</p>" if len(every) > SHOWN else ""
    return f'<div class="scrolls"><table>{cells}</table></div>{more}'


def _error(sentence: str) -> str:
    return f'<p class="sentence error" id="error">{escape(sentence)}</p>'


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
