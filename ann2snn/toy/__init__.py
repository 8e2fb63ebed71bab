"""Diffusion of points in the plane and of tiny images: processes and samplers at work within a minute."""
