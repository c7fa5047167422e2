"""espeak-ng in this process: small voices for some hundred languages, on any CPU.

A library of C with one global state: so one engine for a process, and one sentence at a time. It
makes some hundred seconds of speech in one. The interface is that of ``espeak_ng/speak_lib.h`` 1.51
and newer. Needs the standard library alone, since Triton's Python backend imports this file too.

The same sentence twice is as long to a percent, and not the same to the bit: the library's voices
flutter, by a table in which it never begins anew.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.plan.errors import ConfigError, ModelFailed
from serving.plan.speech import Gender, Voice, no_such_voice

WORDS_PER_MINUTE = 175
"""At speed 1, its own default."""
WORDS_MIN, WORDS_MAX = 80, 450
"""What it can speak; beyond that is time-stretching, which ``serving/media`` does."""
VARIANTS = ("f2", "f3", "f5", "m2", "m3", "m7")
"""Timbres to put on a language, as in ``en-us+f3``. The library has more, of the same kind."""

_SYNCHRONOUS, _DONT_EXIT = 2, 0x8000
_UTF8, _END_PAUSE = 1, 0x1000
_RATE = 1
_OK = 0
_GENDERS: dict[int, Gender] = {1: "male", 2: "female"}

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class _CVoice(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        # A priority byte before each name, and a zero byte after the last.
        ("languages", ctypes.POINTER(ctypes.c_char)),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


@dataclass(frozen=True)
class Library:
    """Where espeak-ng is: its shared library, and its data unless it finds those by itself."""

    path: str
    data: str | None = None


def find_library() -> Library:
    """The one in the wheel ``espeakng-loader``, else the system's; ConfigError if there is none."""
    try:
        import espeakng_loader
    except ImportError:
        if found := ctypes.util.find_library("espeak-ng"):
            return Library(found)
        raise ConfigError(
            "speech needs espeak-ng, and it is not on this machine: `pip install espeakng-loader`, "
            "or `apt install libespeak-ng1`"
        ) from None
    folder = Path(espeakng_loader.__file__).parent
    return Library(str(folder / "libespeak-ng.so"), str(folder))


class Espeak:
    """The :class:`~serving.plan.speech.SpeechEngine` of this process; :func:`espeak` gives it.

    ``sample_rate_hz`` is what all its voices have.
    """

    def __init__(self, library: Library) -> None:
        try:
            self._c = ctypes.CDLL(library.path)
        except OSError as error:
            raise ConfigError(f"espeak-ng cannot be loaded: {error}") from error
        self._c.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_CVoice))
        self._c.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self._c.espeak_Info.restype = ctypes.c_char_p
        self.sample_rate_hz: int = self._c.espeak_Initialize(
            _SYNCHRONOUS, 0, library.data.encode() if library.data else None, _DONT_EXIT
        )
        if self.sample_rate_hz <= 0:
            raise ConfigError(f"espeak-ng does not find its data in {library.data or 'its folder'}")
        self._lock = threading.Lock()
        # What C calls must live as long as C may call it.
        self._callback = _Callback(self._take)
        self._c.espeak_SetSynthCallback(self._callback)
        self._parts: list[bytes] = []
        self._wanted: Callable[[], bool] = lambda: True
        self._files: dict[str, str] = {}
        self._voices = self._list()
        self._ids = {voice.id for voice in self._voices}

    @property
    def voices(self) -> list[Voice]:
        """One for each language, and for each with each of :data:`VARIANTS`, by id."""
        return self._voices

    def say(
        self, text: str, voice: str, speed: float = 1.0, wanted: Callable[[], bool] | None = None
    ) -> bytes:
        """A sentence as 16-bit little-endian mono PCM at ``sample_rate_hz``, its pause included.

        Blocks, and waits for whoever else speaks. ``speed`` is kept to what :meth:`spoken_speed`
        says. Ends early, with what there is, once ``wanted`` says no. :class:`InvalidRequest` for a
        voice there is not; :class:`ModelFailed` if the library fails.
        """
        self.check_voice(voice)
        # The library reads to the first zero byte.
        encoded = text.replace("\0", " ").encode() + b"\0"
        with self._lock:
            self._parts, self._wanted = [], wanted or (lambda: True)
            words = round(self.spoken_speed(speed) * WORDS_PER_MINUTE)
            done = [
                self._c.espeak_SetVoiceByName(self._file(voice).encode()),
                self._c.espeak_SetParameter(_RATE, words, 0),
                self._c.espeak_Synth(
                    encoded, len(encoded), 0, 1, 0, _UTF8 | _END_PAUSE, None, None
                ),
            ]
            parts, self._parts = self._parts, []
        if any(code != _OK for code in done):
            raise ModelFailed(f"espeak-ng cannot say this with the voice {voice}: codes {done}")
        return b"".join(parts)

    @staticmethod
    def spoken_speed(speed: float) -> float:
        """The nearest speed to ``speed`` (1 is normal) that the library can speak."""
        return min(max(speed * WORDS_PER_MINUTE, WORDS_MIN), WORDS_MAX) / WORDS_PER_MINUTE

    def check_voice(self, voice: str) -> None:
        """:class:`InvalidRequest` for a voice there is not. The library would fall back to one."""
        if voice not in self._ids:
            raise no_such_voice(voice)

    def _file(self, voice: str) -> str:
        """As the library is asked for it: it knows not every language by its name, but each by its
        file."""
        language, plus, variant = voice.partition("+")
        return self._files[language] + plus + variant

    def _take(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _events: object) -> int:
        if samples and count > 0:
            self._parts.append(ctypes.string_at(samples, 2 * count))
        return 0 if self._wanted() else 1

    def _list(self) -> list[Voice]:
        where = ctypes.c_char_p()
        self._c.espeak_Info(ctypes.byref(where))
        data = Path((where.value or b"").decode())
        found: dict[str, Voice] = {}
        listed = self._c.espeak_ListVoices(None)
        for at in itertools.takewhile(lambda n: bool(listed[n]), itertools.count()):
            voice = listed[at].contents
            language, file = _first_language(voice), voice.identifier.decode()
            # Those of MBROLA need data that nobody has.
            if file.startswith("mb/") or language in found or not _has_dictionary(data, file):
                continue
            name, self._files[language] = voice.name.decode(), file.rpartition("/")[2]
            found[language] = Voice(language, name, language, _GENDERS.get(voice.gender, "neutral"))
            for variant in VARIANTS:
                gender: Gender = "female" if variant.startswith("f") else "male"
                own_id = f"{language}+{variant}"
                found[own_id] = Voice(own_id, f"{name}, {variant}", language, gender)
        return sorted(found.values(), key=lambda each: each.id)


def _has_dictionary(data: Path, file: str) -> bool:
    """Not every package has the words of every language that it lists."""
    try:
        lines = (data / "lang" / file).read_text().splitlines()
    except OSError:
        return False
    named = [line.split()[1] for line in lines if line.startswith("dictionary ")]
    base = file.rpartition("/")[2].partition("-")[0].lower()
    return (data / f"{(named or [base])[0]}_dict").is_file()


def _first_language(voice: _CVoice) -> str:
    return ctypes.string_at(ctypes.addressof(voice.languages.contents) + 1).decode()


@functools.cache
def espeak() -> Espeak:
    """This process's engine; :class:`ConfigError` if there is none on this machine."""
    return Espeak(find_library())
