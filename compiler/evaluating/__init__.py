"""What an evaluation is made of: sessions in turns, scores, intervals, footprints, budgets."""

if __name__ != "polycast.evaluating":
    raise ImportError(f"this package is polycast.evaluating, not {__name__}")
