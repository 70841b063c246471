"""Where steps run. An executor has `open(draft, network=…)`, a context manager that yields a session;
leaving it seals the draft's image.
"""
