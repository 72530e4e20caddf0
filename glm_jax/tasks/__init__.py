"""Every NLP task as filling blanks (paper, sections 2.3 and 3): examples, a template and a metric."""
