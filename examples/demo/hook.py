"""hook.py PORT-FILE: the demo's web server: what is posted to it is given to accord.receive_webhook() as it came.

PostgREST does the same (accord.expose_webhook()); this one runs psql, and answers 2xx once that has committed.
"""
import json
import subprocess
import sys

import stand_in


class Hook(stand_in.Handler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0))).decode()
        done = subprocess.run(['psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'headers=' + json.dumps(dict(self.headers)),
                               '-v', 'body=' + body],
                              input="SELECT accord.receive_webhook('ota', :'headers', convert_to(:'body', 'UTF8'));",
                              capture_output=True, text=True, check=False)
        if done.returncode == 0:
            self.answer(200, {})
        else:
            self.answer(500, {'error': 'try again later'})


stand_in.serve(Hook, sys.argv[1])
