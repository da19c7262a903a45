"""The DAX window as plain data: what lies where in it, and the steps that change it. Imports nothing of ours."""
