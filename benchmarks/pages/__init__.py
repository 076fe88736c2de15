"""Pages of the documentation from results: templates with the words, modules with tables, numbers and figures."""
