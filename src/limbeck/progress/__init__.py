"""What hears of a job's progress: the screen, a file that others watch, trackers. Each is a listener of events."""

from limbeck.progress.combine import combine as combine
from limbeck.progress.default import listening as listening
from limbeck.progress.file import ProgressFile as ProgressFile
