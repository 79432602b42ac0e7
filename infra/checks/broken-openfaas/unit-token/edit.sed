s#openfaas-fn/event-token#event-token#
