"A test run that hangs says where, instead of running into somebody's time limit."
import faulthandler

def pytest_unconfigure(config):
    "All tests are done: whatever keeps Python from ending within five minutes (threads, loader processes) is shown, and is a failure."
    faulthandler.dump_traceback_later(300, exit=True)
