"""The paper's tables and figures from the records of runs, ours beside the paper's.

Nothing is imported here: `cwkernels.report.paper` is read by programs that load no torch.
"""
