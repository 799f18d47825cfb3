"""From a data set in its own layout to a shard set. A layout is one file with a `Source`, registered in one line.

Outside this package the line is a decorator, in a module that `GAMUT_PLUGINS` or an entry point names (see
`gamut.registry`); `gamut shards convert mydata SRC DST` then converts it:

    from gamut.shards.convert import SOURCES, Listing, Record, Source

    @SOURCES.register("mydata")
    class MyData(Source):
        expects = "clips/*.wav and labels.csv"

        def list(self, folder):
            return Listing("mydata", ("cat", "dog"), (), [Record("a", folder / "clips" / "a.wav", labels=(1,))])
"""

from gamut.registry import Registry
from gamut.shards.convert.source import Listing, Missing, Record, Source

SOURCES: Registry[type[Source]] = Registry(
    "data set",
    {
        "audioset": "gamut.shards.convert.audioset:AudioSet",
        "ast-json": "gamut.shards.convert.ast_json:AstJson",
        "esc50": "gamut.shards.convert.esc50:Esc50",
        "speechcommands": "gamut.shards.convert.speechcommands:SpeechCommands",
        "voxceleb1": "gamut.shards.convert.voxceleb1:VoxCeleb1",
        "vggsound": "gamut.shards.convert.vggsound:VggSound",
        "epic-sounds": "gamut.shards.convert.epic_sounds:EpicSounds",
        "librispeech": "gamut.shards.convert.librispeech:LibriSpeech",
        "folder": "gamut.shards.convert.folder:Folder",
        "csv": "gamut.shards.convert.csv_table:Csv",
    },
)

__all__ = ["SOURCES", "Listing", "Missing", "Record", "Source"]
