"""Pages of the documentation made from results: templates hold the text, modules the tables, numbers and figures."""
