"""The router: pairs a prefill and a decode group per request and relays their streams as bytes."""
