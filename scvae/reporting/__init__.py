"""A report of a fit in one HTML file: what was measured, its pictures, its page."""
