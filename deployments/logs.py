"""What a replica says of its work: on stderr, which Ray keeps in a file for each process."""

from __future__ import annotations

import logging

ROOMS = ("deployments", "serving", "quota")
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to_stderr() -> None:
    """Ours from INFO on (who changed what, what became of a payment), of others what is wrong.

    Python by itself drops what is less than a warning, and Ray sets up nothing but its own.
    """
    logging.basicConfig(level=logging.WARNING, format=FORMAT)
    for room in ROOMS:
        logging.getLogger(room).setLevel(logging.INFO)
