"""The scripted runs, for the tests of this folder."""

from scripted_runs import Scripted, scripted, supervise, wait_for, wait_for_end

__all__ = ["Scripted", "scripted", "supervise", "wait_for", "wait_for_end"]
