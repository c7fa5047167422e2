"""What can go wrong with media.

    MediaError
    ├── EncodeError             frames or sizes that cannot become a file; retrying will not help
    └── StoreError              the store refused: a bad key or range, no permission, no bucket
        ├── ArtifactMissing     nothing is stored under this key
        └── StoreUnavailable    the store is away, slow or failing; a later try may succeed

What is not in the tree is a bug.
"""


class MediaError(Exception):
    """Base of every error this room raises on purpose."""


class EncodeError(MediaError):
    """The frames could not be encoded; no file was left behind."""


class StoreError(MediaError):
    """The artifact store refused, and will refuse the same request again."""


class ArtifactMissing(StoreError):
    """Nothing is stored under the key."""


class StoreUnavailable(StoreError):
    """The store did not answer in time, or failed; the same request may succeed later."""
