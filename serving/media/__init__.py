"""Turns frames and sound into files a browser plays, and keeps the files: encode, stills, store.

Knows arrays, bytes and object stores. Must not know jobs, Redis, Ray, HTTP frameworks or torch.
"""

from serving.media.audio import CODECS, AudioEncoder
from serving.media.errors import (
    ArtifactMissing,
    EncodeError,
    MediaError,
    StoreError,
    StoreUnavailable,
)
from serving.media.frames import Frame, Frames
from serving.media.stills import Stills, StillsCollector, preview_jpeg, spritesheet, thumbnail
from serving.media.store import ArtifactInfo, ArtifactStore, S3Options, open_store
from serving.media.video import VideoInfo, VideoWriter
from serving.plan.speech import AudioFormat

__all__ = [
    "CODECS",
    "ArtifactInfo",
    "ArtifactMissing",
    "ArtifactStore",
    "AudioEncoder",
    "AudioFormat",
    "EncodeError",
    "Frame",
    "Frames",
    "MediaError",
    "S3Options",
    "Stills",
    "StillsCollector",
    "StoreError",
    "StoreUnavailable",
    "VideoInfo",
    "VideoWriter",
    "open_store",
    "preview_jpeg",
    "spritesheet",
    "thumbnail",
]
