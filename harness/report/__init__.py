"""Reports: records in; text, figures and HTML out; no computing."""
