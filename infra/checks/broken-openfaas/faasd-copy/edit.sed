s#/var/lib/faasd-provider/secrets/openfaas-fn/lambda#./secrets/lambda#
