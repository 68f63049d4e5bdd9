"""Checks: a suite on one commit, from the rules that ask for it to the verdict. Knows no code host."""
