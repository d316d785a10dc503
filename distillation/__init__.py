"""Distillation: a small student learns a large teacher's distribution at a high temperature."""
