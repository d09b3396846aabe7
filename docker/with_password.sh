#!/bin/sh
# Run a command with the data base's password where libpq looks for it; so it stands in no file of the project, in no
# argument, and not in what `docker inspect` shows.
#
#   POSTGRES_PASSWORD_FILE=/run/secrets/postgres_password sh docker/with_password.sh mlflow server ...
set -eu
PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
export PGPASSWORD
exec "$@"
