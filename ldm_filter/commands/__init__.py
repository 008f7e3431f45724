"""Commands of the program that are more than a call of the estimator."""
