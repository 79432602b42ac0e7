s#CONFIG_FILE=/run#CONFIG_FILE=/var/run#
