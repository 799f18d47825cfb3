"""How tags and text are written: one list, for the command, for streams and for downloads."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gamut.tag.result import Choice, Tagged

COLUMNS = ("file", "start", "end", "label", "probability")
Write = Callable[[Iterable[Tagged], Choice], Iterator[str]]  # pieces of the file, with their ends of line, as they come


@dataclass(frozen=True)
class Format:
    """A form of a file of tags."""

    about: str
    ending: str
    write: Write
    together: bool = True  # whether several recordings can be in one file

    def of(self, tagged: Tagged, choice: Choice) -> str:
        """A file of one recording."""
        return "".join(self.write([tagged], choice))


def as_json(several: Iterable[Tagged], choice: Choice) -> Iterator[str]:
    """A line a recording, or a part of a stream."""
    for tagged in several:
        content: dict = {"file": str(tagged.path), "seconds": round(tagged.seconds, 4)}
        if tagged.labels:
            content["spans"] = [
                {
                    "start": span.start,
                    "end": span.end,
                    "tags": [{"label": name, "probability": round(p, 6)} for name, p in choice.of(tagged, span)],
                }
                for span in tagged.spans
            ]
        if tagged.text is not None:
            content["text"] = tagged.text
            content["segments"] = [{"start": one.start, "end": one.end, "text": one.text} for one in tagged.words]
        yield json.dumps(content, ensure_ascii=False) + "\n"


def as_csv(several: Iterable[Tagged], choice: Choice) -> Iterator[str]:
    """Lines in `COLUMNS`; a segment of text has the label `text` and the text in place of the probability."""
    yield ",".join(COLUMNS) + "\n"
    for tagged in several:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        for span in tagged.spans:
            for name, probability in choice.of(tagged, span):
                writer.writerow([tagged.path, span.start, span.end, name, f"{probability:.6f}"])
        for one in tagged.words:
            writer.writerow([tagged.path, one.start, one.end, "text", one.text.strip()])
        yield out.getvalue()


def as_table(several: Iterable[Tagged], choice: Choice) -> Iterator[str]:
    """For people."""
    for tagged in several:
        table = Table(title=Text(f"{tagged.path}, {tagged.seconds:.1f} s"), title_justify="left")
        table.add_column("seconds", justify="right")
        table.add_column("tags" if tagged.labels else "text")
        for when, what in _rows(tagged, choice):
            table.add_row(when, what)
        out = io.StringIO()
        Console(file=out, width=110).print(table)
        yield out.getvalue()


def as_lines(several: Iterable[Tagged], choice: Choice) -> Iterator[str]:
    """For people, of a stream."""
    for tagged in several:
        for when, what in _rows(tagged, choice):
            yield f"{when:>17}  {what}\n"


def as_audacity(several: Iterable[Tagged], choice: Choice) -> Iterator[str]:
    """A label track: start, end and label with tabs between, a line a tag and a segment of text."""
    for tagged in several:
        tags = [(one.start, one.end, name) for one in tagged.spans for name, _ in choice.of(tagged, one)]
        for start, end, label in sorted([*tags, *_texts(tagged)], key=lambda line: line[0]):
            yield f"{start:.6f}\t{end:.6f}\t{_one_line(label)}\n"


def as_srt(several: Iterable[Tagged], choice: Choice) -> Iterator[str]:
    """Subtitles: the text where there is some, else the tags of each span."""
    number = 0
    for tagged in several:
        tags = [(one.start, one.end, ", ".join(name for name, _ in choice.of(tagged, one))) for one in tagged.spans]
        for start, end, line in tags if tagged.text is None else _texts(tagged):
            if line:
                number += 1
                yield f"{number}\n{_clock(start)} --> {_clock(end)}\n{_one_line(line)}\n\n"


FORMATS = {
    "table": Format("a table for people", ".txt", as_table),
    "json": Format("a line a recording", ".json", as_json),
    "csv": Format("a line a tag", ".csv", as_csv),
    "audacity": Format("an Audacity label track", ".txt", as_audacity, together=False),
    "srt": Format("subtitles: the text of a Whisper, else the tags", ".srt", as_srt, together=False),
}


def _rows(tagged: Tagged, choice: Choice) -> Iterator[tuple[str, Text]]:
    """(when, what), by time; text comes before the tags of the same moment."""
    rows: list[tuple[float, int, str, Text]] = []  # names and text may have brackets, which are no markup
    for span in tagged.spans:
        tags = ", ".join(f"{name} {p:.0%}" for name, p in choice.of(tagged, span)) or "-"
        rows.append((span.start, 1, f"{span.start:.1f} - {span.end:.1f}", Text(tags)))
    for start, end, text in _texts(tagged):
        rows.append((start, 0, f"{start:.1f} - {end:.1f}", Text(text, "italic")))
    yield from ((when, what) for _, _, when, what in sorted(rows, key=lambda row: row[:2]))


def _texts(tagged: Tagged) -> list[tuple[float, float, str]]:
    return [(one.start, one.end, one.text.strip()) for one in tagged.words]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _clock(seconds: float) -> str:
    """As subtitles have it: 01:02:03,450."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02},{rest % 1000:03}"
