"""Reports: the results of a sweep as a page for people."""
