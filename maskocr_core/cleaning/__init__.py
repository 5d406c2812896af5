"""What may go of the disk and of the store: found by a rule, said with its cost, removed only when asked to.

work: homes of stages, runs and pipeline folders on this machine. store: what lies in MASKOCR_STORE. named: which
objects of a store a manifest still names.
"""
