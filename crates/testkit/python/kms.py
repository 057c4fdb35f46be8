"""A key management service as AWS's (moto), with one key: the secret on standard input's first line, as 64 hex digits.

Prints the key's id once it serves. moto signs a message's SHA-256, whatever the request's MessageType says; Ethereum's signers
hand over a digest (MessageType DIGEST), so that is added here.

    python kms.py PORT
"""

import sys

import boto3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from moto.kms.utils import ECDSAPrivateKey
from moto.server import ThreadedMotoServer

SECRET = int(sys.stdin.readline(), 16)
make = ECDSAPrivateKey.__init__


def with_secret(self, key_spec):
    make(self, key_spec)
    self.private_key = ec.derive_private_key(SECRET, ec.SECP256K1())


def sign_digest(self, message, signing_algorithm):
    if signing_algorithm != "ECDSA_SHA_256" or len(message) != 32:
        raise ValueError("only digests of 32 bytes are signed here")
    return self.private_key.sign(message, ec.ECDSA(utils.Prehashed(hashes.SHA256())))


ECDSAPrivateKey.__init__ = with_secret
ECDSAPrivateKey.sign = sign_digest

server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False)
server.start()
kms = boto3.client(
    "kms",
    endpoint_url=f"http://127.0.0.1:{sys.argv[1]}",
    region_name="us-east-1",
    aws_access_key_id="test",
    aws_secret_access_key="test",
)
key = kms.create_key(KeySpec="ECC_SECG_P256K1", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
kms.create_alias(AliasName="alias/stake", TargetKeyId=key)
print(key, flush=True)
# Until whoever started this is gone.
sys.stdin.read()
