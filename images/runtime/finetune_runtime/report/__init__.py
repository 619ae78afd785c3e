"""report.html: what a job did, as one self-contained page. Pure: data in, text out."""
