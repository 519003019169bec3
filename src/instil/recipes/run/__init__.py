"""The whole job: pre-flight, baseline answers, training, answers, scores, report."""
