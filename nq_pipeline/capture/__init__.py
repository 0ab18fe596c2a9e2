"""Live capture: gateway → log → gaps → publish."""
