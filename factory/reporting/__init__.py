"""The report: one HTML file that shows what a run made, judged, learnt and scored."""
