"""Metrics for Prometheus, probes, a Grafana dashboard and alert rules."""
