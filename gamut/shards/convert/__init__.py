"""From a data set in its own layout to a shard set."""

from gamut.shards.convert.ast_json import AstJson
from gamut.shards.convert.audioset import AudioSet
from gamut.shards.convert.csv_table import Csv
from gamut.shards.convert.epic_sounds import EpicSounds
from gamut.shards.convert.esc50 import Esc50
from gamut.shards.convert.folder import Folder
from gamut.shards.convert.librispeech import LibriSpeech
from gamut.shards.convert.source import Listing, Record, Source
from gamut.shards.convert.speechcommands import SpeechCommands
from gamut.shards.convert.vggsound import VggSound
from gamut.shards.convert.voxceleb1 import VoxCeleb1

_ALL: tuple[Source, ...] = (
    AudioSet(), AstJson(), Esc50(), SpeechCommands(), VoxCeleb1(), VggSound(), EpicSounds(), LibriSpeech(), Folder(),
    Csv(),
)  # fmt: skip
SOURCES: dict[str, Source] = {source.name: source for source in _ALL}

__all__ = ["SOURCES", "Listing", "Record", "Source"]
