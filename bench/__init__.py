"""One file per question, ceilings first; run by `python -m supervisor bench`."""
