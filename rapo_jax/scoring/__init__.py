"""Scores of answers: text, maths equivalence, a judge model, rates over several samples."""
