"""What ends a load test or a benchmark early, as opposed to a failure it counts."""


class LoadTestError(Exception):
    """There are no figures: the stack gave no useful answer, or a process of ours failed."""
