"""The report: one self-contained HTML page from one or several workdirs."""
