"""What more than one application of the zoo needs: small modules, one job each."""
