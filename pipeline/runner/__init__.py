"""One run of one job: who else is at work, what with, on what, how it went.

Imports nothing by itself: who asks one of its modules a small thing need not wait for all that a run needs.
"""
